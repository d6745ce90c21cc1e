"""Token ids: rounds repeat each other exactly, and nobody else."""

from sarathi_jax.simulation.chats import Chats
from sarathi_jax.simulation.token_ids import TokenIds
from sarathi_jax.simulation.workloads import RequestShape

ALONE = [RequestShape(0.0, 3, 2), RequestShape(0.0, 200, 50)]
# A conversation of three rounds around another request.
ROUNDS = [
    RequestShape(0.0, 4, 2),
    RequestShape(0.0, 5, 1),
    RequestShape(0.0, 9, 3, after=0),
    RequestShape(0.0, 13, 1, after=2),
]


def test_prompts_have_their_lengths_and_ids_in_the_vocabulary() -> None:
    prompts = TokenIds(ALONE, vocab_size=13).all_new_tokens()
    assert [len(prompt) for prompt in prompts] == [3, 200]
    assert set(prompts[1]) == set(range(13))


def test_a_round_begins_with_prompt_and_output_of_the_one_before() -> None:
    token_ids = TokenIds(ROUNDS, vocab_size=1000)
    for place, shape in enumerate(ROUNDS):
        prompt = token_ids.prompt(place)
        assert len(prompt) == shape.num_prompt_tokens
        if shape.after is not None:
            assert prompt == token_ids.prompt(shape.after) + token_ids.output(shape.after) + token_ids.new_tokens(place)
    assert token_ids.prompt(1)[0] != token_ids.prompt(0)[0]
    assert [len(new) for new in token_ids.all_new_tokens()] == [4, 5, 3, 1]


def test_an_output_can_be_asked_for_token_by_token() -> None:
    token_ids = TokenIds(ROUNDS)
    assert [token_ids.output_at(2, position) for position in range(3)] == token_ids.output(2)
    assert len(set(token_ids.output(2))) > 1


def test_nobody_shares_a_page_who_does_not_repeat_a_round() -> None:
    shapes = Chats().draw(3000, seed=0)
    token_ids = TokenIds(shapes, vocab_size=13)
    starts = {
        tuple(token_ids.prompt(place)[:16]) for place, shape in enumerate(shapes) if shape.num_prompt_tokens >= 16
    }
    conversations = [shape for shape in shapes if shape.after is None and shape.num_prompt_tokens >= 16]
    # Those that begin with fewer than 16 tokens reach 16 with their own first output.
    later = {place for place, shape in enumerate(shapes) if shape.after is None and shape.num_prompt_tokens < 16}
    assert len(conversations) <= len(starts) <= len(conversations) + len(later)


def test_a_system_prompt_is_the_same_for_all_and_ends_where_it_says() -> None:
    shapes = [RequestShape(0.0, 30, 1, num_shared_tokens=20), RequestShape(0.0, 30, 1, num_shared_tokens=20)]
    one, other = (TokenIds(shapes).prompt(place) for place in (0, 1))
    assert one[:20] == other[:20]
    assert one[20] != other[20]
    whole = TokenIds([RequestShape(0.0, 20, 1, num_shared_tokens=20)]).prompt(0)
    assert whole == one[:20]


def test_the_seed_says_which_tokens() -> None:
    assert TokenIds(ALONE, seed=1).prompt(1) == TokenIds(ALONE, seed=1).prompt(1)
    assert TokenIds(ALONE, seed=1).prompt(1) != TokenIds(ALONE, seed=2).prompt(1)


def test_requests_longer_than_the_list_of_ids_have_all_their_tokens() -> None:
    token_ids = TokenIds([RequestShape(0.0, 200_000, 70_000)])
    assert (len(token_ids.prompt(0)), len(token_ids.output(0))) == (200_000, 70_000)

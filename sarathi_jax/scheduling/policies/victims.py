"""Whose pages the decodes of a step get when there are not enough: those that cost least to compute again, where `PlanRound` by itself takes the last one's."""

from collections.abc import Callable, Sequence

from sarathi_jax.scheduling.policy import View
from sarathi_jax.scheduling.request import Request


def cheapest_victims(view: View, rank: Callable[[Request], int]) -> Sequence[Request]:
    """Running requests that have to go so that the others of the next step's decodes find their pages; () if all do.

    The first running one stays, the oldest of the lowest priority number, so that it ends, and after it the next one. Of the others those of the highest
    number go first, of these those of the lowest rank, and among equals those that computed least of what they hold, and the youngest.
    """
    pages, running = view.ledger(), view.running
    if pages.num_available >= len(running) or pages.num_available >= _num_full(running):
        return ()
    victims: list[Request] = []
    kept = list(running)
    candidates = sorted(
        running[1:],
        key=lambda request: (-request.priority, rank(request), _share_computed(request, view)),
        reverse=True,
    )
    while candidates and pages.num_available < _num_wanted(kept, view):
        request = candidates.pop()
        kept.remove(request)
        victims.append(request)
        pages.release(request)
    return victims


def _share_computed(request: Request, view: View) -> float:
    """Pages that are to be computed again, of those that are set free."""
    return view.limits.num_pages_for(request.num_computed_tokens) / max(len(request.block_table), 1)


def _num_wanted(running: Sequence[Request], view: View) -> int:
    """Pages that the decodes of the next step ask for."""
    decodes = [each for each in running if not each.is_prefilling and each.num_remaining_tokens > 0]
    share = -(-len(decodes) // view.limits.num_microbatches)
    here = [each for each in decodes if each not in view.under_way][:share]
    return _num_full(here)


def _num_full(requests: Sequence[Request]) -> int:
    """Those whose pages hold no other token."""
    return sum([each.num_computed_tokens >= each.num_reserved_tokens for each in requests])

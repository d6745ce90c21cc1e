"""What policies demand of the limits, refused in one place: a step that holds the longest prompt, pages that hold the longest request."""

from dataclasses import replace

from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policy import Policy


def demand_whole_prompts(policy: str, limits: SchedulerLimits, *, with_decodes: bool = False) -> None:
    """For policies that never split a prompt. with_decodes: a step also holds a token of every running request.

    Raises: ConfigError if the budget is too small. After a preemption prompt and output are read again together, so it is max_model_len that has to fit.
    """
    min_budget = limits.max_model_len + (limits.max_num_seqs if with_decodes else 0)
    if limits.token_budget < min_budget:
        sizes = f"max_model_len={limits.max_model_len}"
        sizes += f" + max_num_seqs={limits.max_num_seqs} = {min_budget}" if with_decodes else ""
        company = " beside a token of every running request" if with_decodes else ""
        raise ConfigError(
            f"token_budget={limits.token_budget} must be >= {sizes} for policy={policy!r}: it never splits a prompt, so one step has to hold the longest"
            f"{company}. Raise token_budget, lower max_model_len, or choose a policy that splits prompts, such as 'sarathi'."
        )


def demand_longest_request(policy: str, limits: SchedulerLimits) -> None:
    """For policies that reserve at admission all that a request may ever need. Raises: ConfigError if there are too few pages for one."""
    min_pages = limits.num_pages_for(limits.max_model_len)
    if limits.num_pages < min_pages:
        raise ConfigError(
            f"num_pages={limits.num_pages} must be >= {min_pages} for policy={policy!r}: every request reserves the pages of"
            f" max_model_len={limits.max_model_len} tokens, {limits.page_size} a page. Raise num_pages, lower max_model_len, or choose a policy that reserves"
            " on demand, such as 'vllm'."
        )


def budget_for(policy: Policy, limits: SchedulerLimits) -> int:
    """The limits' token budget, or if the policy refuses it the least that it takes: for the longest prompt, or that beside a token of every running request.

    Raises: ConfigError if the policy refuses the limits for another reason.
    """
    longest = max(limits.max_model_len, limits.max_num_seqs)
    for budget in (limits.token_budget, longest):
        try:
            policy.check(replace(limits, token_budget=budget))
        except ConfigError:
            continue
        return budget
    largest = limits.max_model_len + limits.max_num_seqs
    policy.check(replace(limits, token_budget=largest))
    return largest

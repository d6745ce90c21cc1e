"""The tiny models of the golden files: at least six a family, each with its odd values, one file a family.

Between them: GQA ratios 1, 2, 3, 4, 5 and 8; a head_dim that is not hidden / heads; tied heads; biases; every RoPE scaling that a family has, in the
form of transformers 5 and of transformers 4; windows of 7 to 48 tokens before prompts of 70, no window, and one wider than the context; vocabularies
that are no multiple of 8; one, several and no end-of-sequence ids.
"""

from cases import falcon, gemma2, gemma3, llama, mistral, mixtral, phi3, qwen2, qwen3, qwen3_moe

FAMILIES = (llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, falcon, mixtral, qwen3_moe)
CASES = tuple(case for family in FAMILIES for case in family.CASES)

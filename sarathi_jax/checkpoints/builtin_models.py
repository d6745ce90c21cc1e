"""Shapes of models that the papers measure, by name, for runs with random weights: no files, no network.

Numbers are those of the models' config.json on the hub."""

from sarathi_jax.models.config import ModelConfig, RopeConfig

BUILTIN_MODELS: dict[str, ModelConfig] = {
    # mistralai/Mistral-7B-Instruct-v0.2, which Sarathi-Serve's artifact runs: unlike v0.1, it has no sliding window.
    "mistral-7b": ModelConfig(
        family="mistral",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        norm_eps=1e-5,
        rope=RopeConfig(theta=1e6),
        bos_token_id=1,
        eos_token_ids=(2,),
        dtype="bfloat16",
    ),
    # 01-ai/Yi-34B
    "yi-34b": ModelConfig(
        family="llama",
        vocab_size=64000,
        hidden_size=7168,
        intermediate_size=20480,
        num_layers=60,
        num_heads=56,
        num_kv_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        norm_eps=1e-5,
        rope=RopeConfig(theta=5e6),
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=0,
        dtype="bfloat16",
    ),
    # meta-llama/Llama-2-70b-hf
    "llama2-70b": ModelConfig(
        family="llama",
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=28672,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        norm_eps=1e-5,
        bos_token_id=1,
        eos_token_ids=(2,),
        dtype="float16",
    ),
    # meta-llama/Meta-Llama-3-8B
    "llama3-8b": ModelConfig(
        family="llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_position_embeddings=8192,
        norm_eps=1e-5,
        rope=RopeConfig(theta=5e5),
        bos_token_id=128000,
        eos_token_ids=(128001,),
        dtype="bfloat16",
    ),
    # Qwen/Qwen3-8B
    "qwen3-8b": ModelConfig(
        family="qwen3",
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        has_qk_norm=True,
        rope=RopeConfig(theta=1e6),
        bos_token_id=151643,
        eos_token_ids=(151645,),
        dtype="bfloat16",
    ),
}

"""What other projects call what ours call otherwise: hints beside an error, never another spelling that is accepted."""

# Ours → theirs, in small letters: nanoGPT, MaxText, Levanter, torchtitan, Hugging Face.
_OF_OURS = {
    "model.layers": "n_layer n_layers num_layers num_hidden_layers base_num_decoder_layers",
    "model.width": "n_embd d_model dim hidden_size emb_dim base_emb_dim hidden_dim",
    "model.heads": "n_head n_heads num_heads num_attention_heads base_num_query_heads",
    "model.kv_heads": "n_kv_head n_kv_heads num_kv_heads num_key_value_heads base_num_kv_heads",
    "model.head_size": "head_dim d_head",
    "model.mlp_width": "d_ff ffn_dim mlp_dim base_mlp_dim intermediate_size intermediate_dim",
    "model.vocab_size": "vocab vocabulary padded_vocab_size",
    "model.tie_embeddings": "tie_word_embeddings weight_tying logits_via_embedding",
    "model.rope_base": "rope_theta rope_max_timescale",
    "model.norm_epsilon": "rms_norm_eps norm_eps layer_norm_epsilon",
    "data.sequence_length": "seq_len seq_length max_seq_len block_size context_length max_target_length",
    "data.path": "dataset dataset_path data_dir train_data",
    "optimizer.learning_rate": "lr max_lr peak_lr base_lr",
    "optimizer.warmup_steps": "warmup warmup_iters num_warmup_steps lr_warmup_steps",
    "optimizer.schedule": "lr_schedule lr_scheduler lr_scheduler_type",
    "optimizer.final_fraction": "min_lr_ratio cosine_learning_rate_final_fraction",
    "optimizer.beta1": "adam_b1 adam_beta1 b1",
    "optimizer.beta2": "adam_b2 adam_beta2 b2",
    "optimizer.epsilon": "eps adam_eps adam_epsilon",
    "optimizer.weight_decay": "wd adam_weight_decay",
    "optimizer.clip_norm": "grad_clip max_norm max_grad_norm gradient_clipping",
    "precision.recipe": "precision quantization quantize quant",
    "training.steps": "max_steps num_steps max_iters total_steps num_train_steps",
    "training.batch_size": "batch global_batch_size train_batch_size local_batch_size",
    "training.accumulate": "gradient_accumulation_steps grad_accum accum_steps gradient_accumulation",
    "training.remat": "remat_policy activation_checkpointing gradient_checkpointing",
    "training.eval_every": "eval_interval eval_iters steps_per_eval",
    "mesh.replica": "data_parallel dp ici_data_parallelism data_parallel_replicate_degree",
    "mesh.fsdp": "ici_fsdp_parallelism data_parallel_shard_degree",
    "mesh.tensor": "tp ici_tensor_parallelism tensor_parallel_degree tensor_parallel",
    "checkpoint.every_steps": "checkpoint_period save_interval save_steps",
    "tracking.wandb_project": "wandb wandb_log",
    "name": "run_name exp_name experiment",
}
KEYS = {word: key for key, theirs in _OF_OURS.items() for word in theirs.split()}

# Their number format → what of ours is meant by it.
FORMATS = {
    "fp4": "e2m1, or in blocks mxfp4 or nvfp4",
    "fp6": "e2m3 or e3m2",
    "fp8": "e4m3fn (OCP's E4M3), e5m2, or in blocks mxfp8",
    "fp8_e4m3": "e4m3fn",
    "float8_e4m3fn": "e4m3fn",
    "float8_e5m2": "e5m2",
    "bf8": "e5m2",
    "fp16": "bf16",
    "fp32": "bf16; `training.dtype: float32` is of all activations",
    "i8": "int8",
    "i4": "int4",
}

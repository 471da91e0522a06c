"""What this project touches of DeepSpeed beyond its documented interface: where each thing stands, and what relies on it.

Read in 0.19.8. A test looks all of it up in the source of the installed DeepSpeed, and names what is missing there.
"""

from __future__ import annotations

Uses = dict[str, str]
"""Name -> the file of ours that relies on it, and for what. `f(a, b)` is a function with its arguments but for `self`;
"text" in quotes is a word of a string, or a key given by name; anything else is an attribute, a variable or a class."""

ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"
CHECKPOINT_ENGINE = "deepspeed.runtime.checkpoint_engine"
STAGE_3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
STAGES_1_2 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"

INTERNALS: dict[str, Uses] = {
    "deepspeed.git_version_info": {"installed_ops": "doctor/deepspeed_ops.py: the ops that came built"},
    "deepspeed.ops.op_builder.all_ops": {"ALL_OPS": "doctor/deepspeed_ops.py: a builder for each op"},
    "deepspeed.ops.op_builder.builder:OpBuilder": {
        "is_compatible(verbose)": "doctor/deepspeed_ops.py: can the op be built here?"
    },
    ENGINE: {
        "_copy_recovery_script(save_path)": "checkpoint/save.py: a disk that refuses the script must not end the run",
        "checkpoint_engine": "checkpoint/save.py: shards are hashed as they are written, and nothing in them is run",
        "global_steps": "checkpoint/save.py: set from a universal checkpoint",
        "global_samples": "checkpoint/save.py: set from a universal checkpoint",
        "skipped_steps": "checkpoint/save.py: set from a universal checkpoint",
        "param_names": "engine/shards.py: parameter -> name, at stage 3",
        '"offloaded_tensors"': "checkpoint/save.py: folder of what was offloaded to disk, hashed as well",
        '"_model_states.pt"': "checkpoint/zero_shards.py: end of a file's name",
        '"_optim_states.pt"': "checkpoint/zero_shards.py: end of a file's name",
        '"mp_rank_"': "checkpoint/universal.py: start of a file's name below stage 3",
        '"zero_pp_rank_"': "checkpoint/universal.py: start of a file's name at stage 3",
    },
    f"{ENGINE}._common_checkpoint_state": {
        '"module"': "checkpoint/zero_shards.py: weights, below stage 3",
        '"optimizer"': "checkpoint/zero_shards.py: Adam's states, at stage 0",
        '"param_shapes"': "checkpoint/zero_shards.py: shapes of the trained parameters, group by group",
        '"frozen_param_shapes"': "checkpoint/zero_shards.py: shapes of the frozen ones, at stage 3",
        '"frozen_param_fragments"': "checkpoint/zero_shards.py: this rank's part of the frozen ones, at stage 3",
        '"ds_version"': "checkpoint/universal.py: handed on",
    },
    f"{ENGINE}._save_zero_checkpoint": {
        '"optimizer_state_dict"': "checkpoint/zero_shards.py: a rank's shards",
    },
    f"{CHECKPOINT_ENGINE}.torch_checkpoint_engine:TorchCheckpointEngine": {
        "save(state_dict, path)": "checkpoint/save.py: replaced while it saves",
        "load(path, map_location)": "checkpoint/save.py: replaced while it loads",
    },
    f"{CHECKPOINT_ENGINE}.checkpoint_engine:CheckpointEngine": {
        "makedirs(path, exist_ok)": "checkpoint/save.py: replaced while it saves",
    },
    STAGE_3: {
        "fp32_partitioned_groups_flat": "engine/shards.py: this rank's master weights",
        "fp16_groups": "engine/shards.py: the parameters of each master shard, in order",
        "checkpoint_event_prologue()": "engine/shards.py: parameters are partitioned before weights are copied in",
        "checkpoint_event_epilogue()": "engine/shards.py: persistent parameters are gathered again",
        "_reassign_or_swap_out_partitioned_parameters(sub_group_id)": "engine/shards.py: working weights from master weights",
        "grad_partitions_flat_buffer": "engine/step.py: gradients of the last step, forgotten where what they are of is held",
        "_get_norm_groups()": "engine/step.py: the gradient's norm, which is watched where it is taken",
    },
    STAGES_1_2: {
        "scaled_global_norm(norm_type)": "engine/step.py: the gradient's norm, which is watched where it is taken",
        "check_overflow(partition_gradients)": "engine/step.py: waits for the device and says no more than the norm: left out",
        "update_lp_params()": "engine/shards.py: working weights from master weights",
    },
    "deepspeed.runtime.utils": {
        "combine_grad_norm_groups(norm_groups, norm_type)": "engine/step.py: the norms of stage 3 as one",
    },
    "deepspeed.runtime.zero.partition_parameters:Init": {
        "partition_numel()": "engine/shards.py: elements of a parameter on each rank, padding included",
        "ds_numel": "engine/shards.py: elements of a whole parameter; checkpoint/save.py too",
        "ds_tensor": "engine/shards.py: this rank's part of a frozen parameter",
        "ds_secondary_tensor": "engine/shards.py: this rank's part of a node's copy (hpZ), forgotten where weights are loaded",
    },
    "deepspeed.utils.mixed_precision_linkage:link_hp_params": {
        "_hp_mapping": "engine/shards.py: where a parameter lies in this rank's master shards, at stages 1 and 2",
    },
    "deepspeed.utils.tensor_fragment:tensor_fragment": {
        "hp_fragment_address": "engine/shards.py: place in the master shard",
        "lp_fragment_address": "engine/shards.py: place in the parameter",
        "param_group_index": "engine/shards.py: which shard",
    },
    "deepspeed.utils.tensor_fragment:fragment_address": {
        "start": "engine/shards.py: first element",
        "numel": "engine/shards.py: number of elements",
    },
    "deepspeed.utils.tensor_fragment": {
        "fragment_address": "checkpoint/safe_load.py: a class that files name",
    },
    "deepspeed.runtime.zero.config": {
        "ZeroStageEnum": "checkpoint/safe_load.py: a class that files name",
    },
    "deepspeed.runtime.fp16.loss_scaler": {
        "LossScaler": "checkpoint/safe_load.py: a class that files name",
        '"OVERFLOW!"': "engine/ranks.py: the warning that is left out, as the loop says it better",
    },
    "deepspeed.checkpoint.constants": {
        '"fp32_flat_groups"': "checkpoint/zero_shards.py: master weights, at stage 3",
        '"single_partition_of_fp32_groups"': "checkpoint/zero_shards.py: master weights, at stages 1 and 2",
        '"base_optimizer_state"': "checkpoint/zero_shards.py: Adam's states, at stages 1 and 2",
        '"optimizer_state_dict"': "checkpoint/zero_shards.py: Adam's states, at stage 3",
        '"param_alignment_paddings"': "checkpoint/zero_shards.py: gaps between parameters, at stages 1 and 2",
        '"param_groups"': "checkpoint/universal.py: the optimizer's groups",
        '"param"': "checkpoint/universal.py: a whole tensor",
        '"cat_dim"': "checkpoint/universal.py: the dimension that DeepSpeed's loaders cut",
        '"fp32"': "checkpoint/zero_shards.py: file of a master weight",
    },
    "deepspeed.checkpoint.ds_to_universal:_save_optimizer_state": {
        '"zero"': "checkpoint/universal.py: folder of the tensors",
        '"optimizer_state.pt"': "checkpoint/universal.py: file of groups and counter",
    },
    "deepspeed.comm.comm": {
        "cdb": "engine/ranks.py: the back end, whose groups get the run's time-out",
    },
    "deepspeed.comm.torch:TorchBackend": {
        "new_group(ranks)": "engine/ranks.py: replaced, so that ZeRO's groups have the run's time-out",
    },
    "deepspeed.runtime.compiler": {
        "compile()": "engine/lean_import.py: replaced while Muon is imported, whose functions are then compiled when called",
    },
    "deepspeed.ops": {
        '"__compatible_ops__"': "engine/ranks.py: says that shm_comm cannot be compiled, and so it is not",
    },
    "deepspeed.ops.op_builder.cpu.comm": {
        '"deepspeed_shm_comm"': "engine/ranks.py: that op's name",
    },
    "deepspeed.runtime.swap_tensor.optimizer_utils": {
        '".swp"': "checkpoint/save.py: end of the name of an offloaded tensor's file",
    },
    "deepspeed.launcher.launch:main": {
        '"LOCAL_SIZE"': "runs/first_look.py: ranks on this host",
    },
    "deepspeed.constants": {
        '"CROSS_SIZE"': "dist.py: number of hosts",
    },
    "deepspeed.launcher.multinode_runner:PDSHRunner": {
        "parse_user_args()": "launch/hosts.py: words are quoted for what this does to them",
    },
}
"""Module of DeepSpeed, and after the colon the class or function there -> names that stand in it."""

"""What a run leaves on the shared filesystem: step checkpoints to go on from, and the adapter as its result.

    checkpoints/step-<step>/    adapter_model.safetensors  adapter_config.json    loads with PEFT like the result
                                optimizer.safetensors  trainer_state.json         what it takes to go on
                                manifest.json                                     SHA-256 digests of the four
    adapter/                    adapter_model.safetensors  adapter_config.json

* `content`: a checkpoint in memory, and the optimizer's part of it
* `snapshot`: the copy in host memory that a checkpoint is written from while the training goes on
* `background`: the thread that writes
* `write`, `directory`: a directory is written under a name of its own, flushed, read back and renamed, so one that has
  its final name is complete, and was whole on the disk
* `manifest`: digests, and whether files still match them
* `read`: finds the newest checkpoint that is whole, and names those that are not

Every process holds the whole adapter, so rank 0 writes alone and any number of processes can read.
"""

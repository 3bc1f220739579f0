"""What looks after the shared filesystem on behalf of `kubectl finetune`: prune the cache, adopt a checkpoint.

It knows no torch, so that its pod is up at once.
"""

"""A mirror of the Hugging Face Hub's download interface, for machines that cannot reach the Hub.

`store` keeps repositories on disk, `server` speaks the Hub's HTTP, `smollm2`, `tiny_llama` and `sample_datasets`
make what is served, `catalogue` lists it. Run `python -m dev.hub build`, then `python -m dev.hub serve`.
"""

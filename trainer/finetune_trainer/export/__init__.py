"""What is made of a trained adapter: its model card, one merged model, an upload.

Story, top to bottom: `merge` adds the adapter to the base model's weights, shard by shard; `serving` says how either is
served; `card` writes what a person has to know before using it; `upload` puts it on the Hub; `stage` does what the job
asks for.
"""

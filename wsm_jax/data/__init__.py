"""Documents, tokens and batches: source -> token store -> a batch that is a function of the step.

``sources`` reads documents, ``tokenizer`` turns text into tokens, ``tokens`` prepares the store on disk and
``pipeline`` reads it with Grain. Nothing heavy is imported until a function needs it.
"""

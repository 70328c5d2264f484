"""Programs that a model wrote, run where they can do no harm.

mechanism = probe.found()  # before anything is generated; refuses where nothing keeps a program in
outcomes = programs.run_all([programs.humaneval(document, completion) for ...], mechanism)
"""

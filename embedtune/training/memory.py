def memory_advice(args, model):
    return ""

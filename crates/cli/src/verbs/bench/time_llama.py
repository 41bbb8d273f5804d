"""Times llama.cpp through llama-cpp-python: reads `prefill N` or `decode N`, answers with seconds.

Arguments: the GGUF, threads, context. The first line it prints is the package's version.
"""

import sys
import time

import llama_cpp

path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = llama_cpp.Llama(
    model_path=path,
    n_ctx=context,
    n_batch=512,
    n_threads=threads,
    n_threads_batch=threads,
    n_gpu_layers=0,
    verbose=False,
)
vocabulary = model.n_vocab()


def some_tokens(count):
    return [(index * 7919 + 17) % vocabulary for index in range(count)]


def measure(what, count):
    model.reset()
    tokens = some_tokens(count)
    begin = time.perf_counter()
    if what == "prefill":
        model.eval(tokens)
    else:
        for token in tokens:
            model.eval([token])
    return time.perf_counter() - begin


print(llama_cpp.__version__, flush=True)
for line in sys.stdin:
    what, count = line.split()
    print(measure(what, int(count)), flush=True)

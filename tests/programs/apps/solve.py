"""A matrix is multiplied, transformed and solved again and again; each step needs all the one before
it left in memory. Every few steps a digest of all of its bits is written down."""
import hashlib
import os
import sys
import time

import numpy

SIZE, STEPS = 64, 10


def steps():
    random = numpy.random.default_rng(4711)
    matrix = random.standard_normal((SIZE, SIZE))
    vector = random.standard_normal(SIZE)
    while True:
        for _ in range(STEPS):
            matrix = matrix @ matrix.T / numpy.linalg.norm(matrix)
            matrix += numpy.outer(vector, random.standard_normal(SIZE))
            vector = numpy.linalg.solve(matrix + numpy.eye(SIZE) * SIZE, vector)
            vector = numpy.fft.ifft(numpy.fft.fft(vector) * 1j).imag + numpy.sin(vector)
        yield hashlib.sha256(matrix.tobytes() + vector.tobytes()).hexdigest()


def work(home):
    with open(home + "/out", "w", buffering=1) as out:
        for number, digest in enumerate(steps(), 1):
            out.write(f"{number} {digest}\n")
            if os.path.exists(home + "/finish"):
                break
            time.sleep(0.1)
        out.write("done\n")


def judge(home):
    lines = open(home + "/out").read().splitlines()
    assert lines and lines[-1] == "done", lines[-1:]
    for (number, digest), line in zip(enumerate(steps(), 1), lines[:-1]):
        assert line == f"{number} {digest}", line
    print(f"{len(lines) - 1} digests of all bits, equal to those of a computation without a crash")


if sys.argv[1] == "--judge":
    judge(sys.argv[2])
else:
    work(sys.argv[1])

"""A pool of three workers; each result says who made it, and each worker counts its own."""
import multiprocessing
import os
import sys
import time

done = 0


def work(number):
    global done
    time.sleep(0.05)
    done += 1
    return number, total(number), os.getpid(), done


def total(number):
    value = 0
    for i in range(200):
        value = (value * 31 + number * i) % 1000003
    return value


def numbers(home):
    number = 0
    while not os.path.exists(home + "/finish"):
        yield number
        number += 1
        time.sleep(0.03)


def run(home):
    with open(home + "/out", "w", buffering=1) as out:
        with multiprocessing.get_context("fork").Pool(3) as pool:
            for result in pool.imap(work, numbers(home)):
                out.write("%d %d %d %d\n" % result)
        out.write("done\n")


def judge(home):
    lines = open(home + "/out").read().splitlines()
    assert lines and lines[-1] == "done", lines[-1:]
    counts = {}
    for number, line in enumerate(lines[:-1]):
        got, value, pid, count = map(int, line.split())
        assert (got, value) == (number, total(number)), line
        counts.setdefault(pid, []).append(count)
    assert len(counts) == 3, counts.keys()
    for pid, found in counts.items():
        assert sorted(found) == list(range(1, len(found) + 1)), (pid, found)
    print(f"{len(lines) - 1} results from the same three workers, each once")


if __name__ == "__main__":
    if sys.argv[1] == "--judge":
        judge(sys.argv[2])
    else:
        run(sys.argv[1])

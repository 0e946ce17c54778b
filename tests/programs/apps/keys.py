"""Clients of redis, by its own protocol: 100 000 keys whose values tell of all of them, a list, an
expiring key, and a client that counts through one connection for as long as it is let."""
import hashlib
import os
import socket
import sys
import time

COUNT = 100000


def value(number):
    return hashlib.sha256(b"%d" % number).hexdigest().encode()


def command(*words):
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        parts.append(b"$%d\r\n%s\r\n" % (len(word), word))
    return b"".join(parts)


class Client:
    def __init__(self):
        self.socket = socket.create_connection(("127.0.0.1", 6379))
        self.file = self.socket.makefile("rb")

    def ask(self, *words):
        self.socket.sendall(command(*words))
        return self.answer()

    def answer(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        assert kind in b":+" and line, line
        return int(rest) if kind == b":" else rest


def load():
    out = sys.stdout.buffer
    for number in range(COUNT):
        out.write(command(b"SET", b"key:%d" % number, value(number)))
    out.write(command(b"RPUSH", b"list", *(b"%d" % n for n in range(1000))))
    out.write(command(b"SET", b"mortal", b"yes", b"EX", b"86400"))
    out.write(command(b"HSET", b"hash", *(b"%d" % n for n in range(400))))


def client(home):
    """Each line is what the server answered: 1, 2, 3 and so on, if none is lost or done twice."""
    one = Client()
    with open(home + "/out", "w", buffering=1) as out:
        while not os.path.exists(home + "/finish"):
            counted = one.ask(b"INCR", b"count")
            length = one.ask(b"RPUSH", b"log", b"%d" % counted)
            out.write(f"{counted} {length}\n")
            time.sleep(0.05)
        out.write("done\n")


def judge(home):
    one = Client()
    for start in range(0, COUNT, 500):
        numbers = range(start, start + 500)
        found = one.ask(b"MGET", *(b"key:%d" % n for n in numbers))
        for number, got in zip(numbers, found):
            assert got == value(number), (number, got)
    assert one.ask(b"LRANGE", b"list", b"0", b"-1") == [b"%d" % n for n in range(1000)]
    assert one.ask(b"HLEN", b"hash") == 200
    left = one.ask(b"TTL", b"mortal")
    assert 86400 - 3 * 3600 < left <= 86400, left
    # Those of the suite, and the client's two.
    size = one.ask(b"DBSIZE")
    assert size == COUNT + 5, size
    print(f"{COUNT} keys with their values, nothing else")


def judge_client(home):
    lines = open(home + "/out").read().splitlines()
    assert lines[-1] == "done"
    for number, line in enumerate(lines[:-1], 1):
        assert line == f"{number} {number}", (number, line)
    log = Client().ask(b"LRANGE", b"log", b"0", b"-1")
    assert log == [b"%d" % n for n in range(1, len(lines))], len(log)
    print(f"{len(lines) - 1} requests of the client, each answered once")


if sys.argv[1] == "load":
    load()
else:
    {"client": client, "judge": judge, "judge-client": judge_client}[sys.argv[1]](sys.argv[2])

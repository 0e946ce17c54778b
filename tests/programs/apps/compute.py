"""What the JVM's eight threads must have written, reckoned anew."""
import struct
import sys

WHOLE = (1 << 64) - 1


def mix(value):
    for _ in range(3000):
        value = (value * 6364136223846793005 + 1442695040888963407) & WHOLE
        value ^= value >> 29
    return value


def wave(value):
    for _ in range(1000):
        value = value * 3.9 * (1.0 - value)
    return value


lines = open(sys.argv[1] + "/out").read().splitlines()
assert lines and lines[-1] == "done", lines[-1:]
counts = [0] * 9
values = list(range(9))
waves = [0.1 + number / 100.0 for number in range(9)]
for line in lines[:-1]:
    number, count, value, bits = map(int, line.split())
    counts[number] += 1
    values[number] = mix(values[number])
    waves[number] = wave(waves[number])
    wanted = struct.unpack("<q", struct.pack("<d", waves[number]))[0]
    assert (count, value & WHOLE, bits) == (counts[number], values[number], wanted), line
print(f"{counts[1:]} steps of eight threads, each as reckoned anew")

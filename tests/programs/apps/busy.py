"""What node's three clients must have got, reckoned anew."""
import hashlib
import sys


def mix(value):
    for _ in range(3000):
        value = (value * 1103515245 + 12345) % (1 << 32)
    return value


lines = open(sys.argv[1] + "/out").read().splitlines()
assert lines and lines[-1] == "done", lines[-1:]
counts, values = [0] * 4, [0] * 4
for line in lines[:-1]:
    client, count, value, digest = line.split()
    client = int(client)
    counts[client] += 1
    values[client] = mix(values[client] + client)
    answer = f"{counts[client]} {values[client]}"
    assert f"{count} {value}" == answer, line
    assert digest == hashlib.pbkdf2_hmac("sha256", answer.encode(), b"salt", 10, 8).hex(), line
print(f"{counts[1:]} answers to three clients, none lost, doubled or out of turn")

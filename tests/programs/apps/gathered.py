"""Three clients ask a server in the same loop for the next of their chain of numbers, one through
TCP and two through a UNIX socket; each answer goes through `cat` before it is written down."""
import asyncio
import os
import sys


def step(value, client):
    return (value * 6364136223846793005 + 1442695040888963407 + client) % (1 << 64)


async def serve(reader, writer):
    """Keeps the chain of this connection: it is nowhere else."""
    value = count = 0
    while line := await reader.readline():
        value, count = step(value, int(line)), count + 1
        writer.write(b"%d %d\n" % (count, value))
        await writer.drain()
    writer.close()


async def ask(connection, client, lock, child, out, finish):
    reader, writer = connection
    while not finish.is_set():
        writer.write(b"%d\n" % client)
        answer = await asyncio.wait_for(reader.readline(), 3600)
        async with lock:
            child.stdin.write(b"%d %s" % (client, answer))
            out.write((await child.stdout.readline()).decode())
        await asyncio.sleep(0.05 * client)
    writer.close()


async def work(home):
    path = home + "/socket"
    finish, lock = asyncio.Event(), asyncio.Lock()
    local = await asyncio.start_unix_server(serve, path)
    connections = [await asyncio.open_unix_connection(path) for _ in range(2)]
    inet = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = inet.sockets[0].getsockname()[1]
    servers = [local, inet]
    connections.append(await asyncio.open_connection("127.0.0.1", port))
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
    with open(home + "/out", "w", buffering=1) as out:
        asks = [
            asyncio.create_task(ask(connection, client, lock, child, out, finish))
            for client, connection in enumerate(connections, 1)
        ]
        while not os.path.exists(home + "/finish"):
            await asyncio.sleep(0.2)
        finish.set()
        await asyncio.gather(*asks)
        child.stdin.close()
        out.write(f"done {await child.wait()}\n")
    for server in servers:
        server.close()


def judge(home):
    lines = open(home + "/out").read().splitlines()
    assert lines and lines[-1] == "done 0", lines[-1:]
    counts, values = [0] * 4, [0] * 4
    for line in lines[:-1]:
        client, count, value = map(int, line.split())
        values[client] = step(values[client], client)
        counts[client] += 1
        assert (count, value) == (counts[client], values[client]), line
    print(f"{counts[1:]} answers to three clients, none lost, doubled or out of turn")


if sys.argv[1] == "--judge":
    judge(sys.argv[2])
else:
    asyncio.run(work(sys.argv[1]))

"""Eight connections to PostgreSQL: seven commit a row at a time and write down what was acknowledged;
the eighth has a transaction open, which it commits at the end."""
import os
import sys
import threading
import time

import psycopg2

HOME = sys.argv[1]
WORKERS = 7
lock = threading.Lock()


def finish():
    return os.path.exists(HOME + "/finish")


def insert(cursor, number, worker):
    cursor.execute(
        "INSERT INTO items VALUES (%s, %s, pg_backend_pid(), repeat(%s, 200)) RETURNING backend",
        (number, worker, str(worker)),
    )
    return cursor.fetchone()[0]


def work(connection, worker, acks):
    number = worker
    mine = connection.get_backend_pid()
    while not finish():
        with connection.cursor() as cursor:
            backend = insert(cursor, number, worker)
        connection.commit()
        assert backend == mine, (backend, mine)
        with lock:
            acks.write(f"{number}\n")
        number += WORKERS
        time.sleep(0.05 * worker)


def main():
    connections = [psycopg2.connect("dbname=postgres user=postgres") for _ in range(WORKERS + 1)]
    long = connections.pop()
    cursor = long.cursor()
    cursor.execute("DECLARE part CURSOR FOR SELECT n FROM generate_series(1, 1000) n")
    cursor.execute("FETCH 10 FROM part")
    assert [row[0] for row in cursor.fetchall()] == list(range(1, 11))
    for number in range(0, -3, -1):
        insert(cursor, number, 0)
    with open(HOME + "/acks", "a", buffering=1) as acks:
        threads = [
            threading.Thread(target=work, args=(connection, worker, acks))
            for worker, connection in enumerate(connections, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # The same transaction, where it was: its cursor, its rows.
    cursor.execute("FETCH 10 FROM part")
    assert [row[0] for row in cursor.fetchall()] == list(range(11, 21))
    for number in range(-3, -5, -1):
        insert(cursor, number, 0)
    long.commit()
    print("done", flush=True)


main()

import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.locks.ReentrantLock;

/** Eight threads, each with a chain of its own of whole and of floating numbers, and garbage. */
public class Compute {
    static final int THREADS = 8;
    static final ReentrantLock WRITES = new ReentrantLock();
    static final AtomicBoolean FINISH = new AtomicBoolean();

    static long mix(long value, int turns) {
        for (int turn = 0; turn < turns; turn++) {
            value = value * 6364136223846793005L + 1442695040888963407L;
            value ^= value >>> 29;
        }
        return value;
    }

    static double wave(double value, int turns) {
        for (int turn = 0; turn < turns; turn++) {
            value = value * 3.9 * (1.0 - value);
        }
        return value;
    }

    static void chain(int number, PrintWriter out) {
        long value = number;
        double wave = 0.1 + number / 100.0;
        ArrayDeque<byte[]> kept = new ArrayDeque<>();
        for (int count = 1; !FINISH.get(); count++) {
            value = mix(value, 3000);
            wave = wave(wave, 1000);
            byte[] block = new byte[20000 + ThreadLocalRandom.current().nextInt(20000)];
            block[count % 20000] = (byte) count;
            kept.add(block);
            if (kept.size() > 20 && kept.remove()[(count - 20) % 20000] != (byte) (count - 20)) {
                throw new IllegalStateException("a block is not what it was");
            }
            WRITES.lock();
            try {
                out.printf("%d %d %d %d%n", number, count, value, Double.doubleToLongBits(wave));
                out.flush();
            } finally {
                WRITES.unlock();
            }
            try {
                Thread.sleep(100 + 10 * number);
            } catch (InterruptedException e) {
                return;
            }
        }
    }

    public static void main(String[] args) throws Exception {
        Path finish = Path.of(args[0], "finish");
        ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor();
        timer.scheduleAtFixedRate(() -> FINISH.set(Files.exists(finish)), 0, 200, TimeUnit.MILLISECONDS);
        try (PrintWriter out = new PrintWriter(Path.of(args[0], "out").toFile())) {
            Thread[] threads = new Thread[THREADS];
            for (int i = 0; i < THREADS; i++) {
                int number = i + 1;
                threads[i] = new Thread(() -> chain(number, out), "chain-" + number);
                threads[i].start();
            }
            for (Thread thread : threads) {
                thread.join();
            }
            out.println("done");
        }
        timer.shutdown();
    }
}

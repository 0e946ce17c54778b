"""A C program that takes a compiler some time."""
import sys

print("#include <stddef.h>\nextern unsigned table[256];")
for n in range(int(sys.argv[1])):
    print(f"""
unsigned work{n}(const unsigned char *text, size_t length, unsigned seed)
{{
    unsigned sums[8] = {{ {n}, seed, seed ^ {n * 77}, 3, 4, 5, 6, 7 }};
    for (size_t i = 0; i < length; i++) {{
        switch (text[i] & 7) {{""")
    for case in range(8):
        a, b = (case * 3 + n) % 8, (case * 5 + 1) % 8
        print(f"        case {case}: sums[{a}] = sums[{b}] * {n * 8 + case + 3}u + table[sums[{case}] & 255];")
        print(f"            for (int k = 0; k < {case + 4}; k++) sums[k & 7] ^= sums[(k + {a}) & 7] >> (k & 3); break;")
    print("""        }
    }
    unsigned sum = 0;
    for (int k = 0; k < 8; k++) sum = sum * 31 + sums[k];
    return sum;
}""")

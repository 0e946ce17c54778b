# A JVM: threads that compute with compiled code, a collector at work, timers.
# may: hsperfdata
start() { launch java "$FROM/Compute.java" "$HERE"; }
under_way() { lines out 20; }
judge() {
    goes_on_and_ends out 20 || return 1
    python3 "$FROM/compute.py" "$HERE"
}

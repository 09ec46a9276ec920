"""Measures the memory of a script that runs in a process of its own."""

# Source code for the script: sets `base` to the memory of the process and `peak` to its maximum
# from then on, in bytes.
PEAK = """
import psutil, threading, time
process, peak = psutil.Process(), 0
base = process.memory_info().rss
def watch():
    global peak
    while True:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
"""

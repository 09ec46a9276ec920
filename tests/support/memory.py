"""Memory of a script that runs in a process of its own."""

# Source code: from here on `base` is the process's memory (bytes), and `peak` the most that it has had since.
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

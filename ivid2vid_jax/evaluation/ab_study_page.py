"""The A/B page: `__PAIRS__`, `__QUESTIONS__` and `__COLUMNS__` are replaced by JSON."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Which edit is better?</title><link rel="icon" href="data:,">
<style>
body{font:16px sans-serif;max-width:1000px;margin:1.5em auto;padding:0 1em}
.clips{display:flex;gap:1em;flex-wrap:wrap}
figure{margin:0;flex:1;min-width:200px}figure img{width:100%;image-rendering:pixelated}
figcaption{text-align:center;font-weight:bold}fieldset{margin:1em 0;border:1px solid #ccc}
label{margin-right:2em}button{font-size:1.1em;padding:.4em 1.5em}
[hidden]{display:none}
</style>
<main id="start"><h1>Which edit is better?</h1>
<p>You see a clip, an instruction, and two edits of the clip. Please say which edit is better,
<span id="count"></span> times. The page does not show who made an edit.</p>
<button id="begin">Begin</button></main>
<main id="task" hidden><p id="progress"></p><h2 id="instruction"></h2>
<div class="clips">
<figure><img id="source" alt="original clip"><figcaption>original clip</figcaption></figure>
<figure><img id="left" alt="left edit"><figcaption>left</figcaption></figure>
<figure><img id="right" alt="right edit"><figcaption>right</figcaption></figure>
</div>
<form id="form"></form><button id="next" disabled>Next</button></main>
<main id="end" hidden><h1>Thank you</h1>
<p id="sent">Please download your answers and send them to the person who invited you.</p>
<a id="download"><button>Download the answers</button></a></main>
<script>
"use strict";
const pairs = __PAIRS__, questions = __QUESTIONS__, columns = __COLUMNS__;
const element = id => document.getElementById(id);

function randomBelow(limit) {  // unbiased: rejects words beyond the last multiple of the limit
  const end = 2 ** 32 - 2 ** 32 % limit, word = new Uint32Array(1);
  do crypto.getRandomValues(word); while (word[0] >= end);
  return word[0] % limit;
}

const bytes = Array.from(crypto.getRandomValues(new Uint8Array(8)));
const participant = bytes.map(byte => byte.toString(16).padStart(2, "0")).join("");
const order = pairs.map(pair => ({pair, left: randomBelow(2) ? "first" : "second"}));
for (let i = order.length - 1; i > 0; i--) {
  const j = randomBelow(i + 1);
  [order[i], order[j]] = [order[j], order[i]];
}
const rows = [columns];
let position = -1, shownAt = 0;

function other(name) { return name === "first" ? "second" : "first"; }

function choices(name, words) {
  const group = document.createElement("fieldset"), legend = document.createElement("legend");
  legend.textContent = words; group.append(legend);
  for (const side of ["left", "same", "right"]) {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, {type: "radio", name, value: side, id: `${name}-${side}`});
    label.append(input, side === "same" ? " no difference" : ` ${side}`); group.append(label);
  }
  return group;
}

function show() {
  const {pair, left} = order[position];
  element("progress").textContent = `${position + 1} of ${order.length}`;
  element("instruction").textContent = pair.instruction;
  element("source").src = pair.source;
  element("left").src = pair[left]; element("right").src = pair[other(left)];
  const fields = Object.entries(questions).map(([name, words]) => choices(name, words));
  element("form").replaceChildren(...fields);
  element("next").disabled = true; shownAt = performance.now();
}

function record() {
  const {pair, left} = order[position], answers = new FormData(element("form"));
  const seconds = ((performance.now() - shownAt) / 1000).toFixed(1);
  const clips = {left, right: other(left), same: "same"};
  for (const name of Object.keys(questions))
    rows.push([participant, pair.pair, name, clips[answers.get(name)], left, seconds]);
}

function finish() {
  const text = rows.map(row => row.join(",")).join("\\n") + "\\n";
  element("task").hidden = true; element("end").hidden = false;
  element("download").href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  element("download").download = `answers-${participant}.csv`;
  if (!location.protocol.startsWith("http")) return;
  const saved = "Your answers have been saved. You can close this page.";
  fetch("/answers", {method: "POST", body: text}).then(
    reply => { if (reply.ok) element("sent").textContent = saved; }, () => {});
}

element("count").textContent = pairs.length;
element("form").addEventListener("change", () => {
  const answered = [...new FormData(element("form")).keys()].length;
  element("next").disabled = answered < Object.keys(questions).length;
});
element("begin").addEventListener("click", () => {
  element("start").hidden = true; element("task").hidden = false; position = 0; show();
});
element("next").addEventListener("click", () => {
  record();
  if (++position < order.length) show(); else finish();
});
</script>
</html>
"""

// The page that shows a video's marks.

import { verify } from "./api.js";

const $ = (id) => document.getElementById(id);

const MEANINGS = {
  signed: "A signed C2PA manifest holds: since it was signed, nothing in the file has changed.",
  broken: "There is a C2PA manifest, and the file is not what was signed.",
  "claimed, unsigned": "The file has marks that anyone could have written.",
  unchecked: "There is a C2PA manifest, which this service cannot check.",
  unmarked: "The file has no mark. That says nothing of how it was made.",
};

function row(mark) {
  const status = mark.detail ? `${mark.status}: ${mark.detail}` : mark.status;
  const line = document.createElement("tr");
  for (const text of [mark.name, mark.where, mark.source_type, mark.tool, mark.date, status]) {
    line.insertCell().textContent = text;
  }
  return line;
}

function show(file, report) {
  const says = report.made_by_ai ? "says that AI made it" : "does not say that AI made it";
  $("verdict").textContent = `${file.name}: ${report.verdict}`;
  $("meaning").textContent = `${MEANINGS[report.verdict] ?? ""} It ${says}.`;
  $("marks").replaceChildren(...report.marks.map(row));
  $("report").hidden = false;
}

let latest = 0;

async function check(file) {
  const mine = ++latest;
  $("report").hidden = $("problem").hidden = true;
  $("status").textContent = `Reading ${file.name}…`;
  try {
    const report = await verify(file);
    if (mine === latest) show(file, report);
  } catch (error) {
    if (mine !== latest) return;
    const hint = error.code === "unauthorized" ? " Enter the API key on the studio page." : "";
    $("problem").textContent = `${error.message}.${hint}`;
    $("problem").hidden = false;
  } finally {
    if (mine === latest) $("status").textContent = "";
  }
}

$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) check(target.files[0]);
  target.value = "";
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) check(file);
});

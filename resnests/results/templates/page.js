// Asks for the page again and again, and replaces the sections that have changed. Links and the form need no script.
const known = {}, asked = location.href.split("#")[0];
const parts = root => [...root.querySelectorAll("section[id], div[id=tables]")];
for (const part of parts(document)) known[part.id] = part.innerHTML;
let tag = "", last = new Date();
function replace(fresh) {
  const old = document.getElementById(fresh.id), focus = document.activeElement?.id;
  if (!old || known[fresh.id] === fresh.innerHTML) return;
  if (fresh.id === "filter" && old.contains(document.activeElement)) return;  // somebody chooses
  known[fresh.id] = fresh.innerHTML;
  const open = [...old.querySelectorAll("details[open][id]")].map(one => one.id);
  const scrolled = [...old.querySelectorAll(".wide")].map(one => one.scrollLeft);
  old.innerHTML = fresh.innerHTML;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  old.querySelectorAll(".wide").forEach((one, i) => { one.scrollLeft = scrolled[i] ?? 0; });
  if (focus && document.activeElement?.id !== focus) document.getElementById(focus)?.focus({preventScroll: true});
}
async function look() {
  const line = document.getElementById("connection");
  try {
    const answer = await fetch(asked, {headers: tag ? {"If-None-Match": tag} : {}, cache: "no-store"});
    if (answer.status !== 200 && answer.status !== 304) throw new Error(answer.status);
    if (answer.status === 200) {
      tag = answer.headers.get("ETag");
      parts(new DOMParser().parseFromString(await answer.text(), "text/html")).forEach(replace);
    }
    last = new Date();
    line.hidden = true;
  } catch (error) {
    line.textContent = `The server does not answer; this is how it was at ${last.toLocaleTimeString()}.`;
    line.hidden = false;
  }
  setTimeout(look, document.hidden ? 10000 : tag ? 2000 : 300);  // without a tag it is still reading
}
setTimeout(look, 500);

// A place to drop an image on. It is sent to this machine's unmask only.
const said = element.querySelector("output"), input = element.querySelector("input");

async function send(file) {
  if (!file) return;
  said.textContent = "…";
  const where = new URL("upload?name=" + encodeURIComponent(file.name), document.baseURI);
  try {
    const answer = await (await fetch(where, { method: "POST", body: file })).json();
    said.textContent = answer.error || "";
    if (answer.token) trigger("uploaded", { token: answer.token });
  } catch {
    said.textContent = "it could not be sent: is unmask still running?";
  }
  input.value = "";
}

input.addEventListener("change", () => send(input.files[0]));
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => { event.preventDefault(); send(event.dataTransfer.files[0]); });

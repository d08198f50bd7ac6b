// A report in a frame as tall as it is. It may run nothing, so it is measured from outside.
const holder = element.querySelector(".framed");
let shown = null, watcher = null;

function fit(frame) {
  const page = frame.contentDocument?.documentElement;
  if (!page) return;
  const size = () => { frame.style.height = `${Math.max(240, frame.contentDocument.body?.scrollHeight ?? 0) + 8}px`; };
  watcher?.disconnect();
  watcher = new ResizeObserver(size);
  watcher.observe(frame.contentDocument.body ?? page);
  size();
}

function take() {
  const told = props.value ? JSON.parse(props.value) : null;
  if (JSON.stringify(told) === shown) return;
  shown = JSON.stringify(told);
  if (!told) return holder.replaceChildren();
  const frame = document.createElement("iframe");
  frame.title = told.title;
  frame.setAttribute("sandbox", "allow-same-origin");
  frame.addEventListener("load", () => fit(frame));
  frame.src = told.address;
  holder.replaceChildren(frame);
}

watch("value", take);
take();

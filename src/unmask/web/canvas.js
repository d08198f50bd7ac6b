// A picture that is painted on or touched. Strokes are shown at once, before the server answers.
const canvas = document.createElement("canvas"), picture = new Image();
let told = null, hidden = new Set(), erase = null;  // erase: of the stroke that goes on, whether it shows patches
let asked = 0, newer = false;  // one question at a time: when it was asked, 0 if answered, and whether more was painted since

function show() {
  const holder = element.querySelector(".canvas");
  if (!holder || !told) return;
  if (canvas.parentNode !== holder) holder.replaceChildren(canvas);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", told.alt);
  const larger = Math.max(1, Math.round(640 / picture.naturalWidth));  // lines between patches are finer than pixels
  const W = canvas.width = larger * picture.naturalWidth, H = canvas.height = larger * picture.naturalHeight;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture, 0, 0, W, H);
  if (told.grid) {
    const [rows, columns] = told.grid, h = H / rows, w = W / columns;
    pen.fillStyle = "rgb(128,128,128)";
    for (const i of hidden) pen.fillRect((i % columns) * w, Math.floor(i / columns) * h, w, h);
    pen.strokeStyle = "rgba(255,255,255,0.25)"; pen.beginPath();
    for (let r = 1; r < rows; r++) { pen.moveTo(0, r * h); pen.lineTo(W, r * h); }
    for (let c = 1; c < columns; c++) { pen.moveTo(c * w, 0); pen.lineTo(c * w, H); }
    pen.stroke();
  }
  if (told.mark.length) {
    const [x, y, w, h] = told.mark;
    pen.strokeStyle = "#D55E00"; pen.lineWidth = Math.max(2, W / 150);
    pen.strokeRect(x * W, y * H, w * W, h * H);
  }
}

function take() {
  if (!props.value) return;
  const mine = told && asked && JSON.parse(props.value).paintable;
  told = JSON.parse(props.value);
  asked = 0;
  if (mine && newer) ask();
  else if (erase === null) hidden = new Set(told.hidden);
  picture.onload = show;
  picture.src = told.image;
}

function ask() {
  newer = asked > Date.now() - 3000;
  if (newer) return;
  asked = Date.now();
  trigger("painted", { hidden: [...hidden].sort((a, b) => a - b) });
}

function touch(event) {
  const box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  if (x < 0 || y < 0 || x >= 1 || y >= 1) return;
  if (!told.paintable) return trigger("touched", { x, y });
  const [rows, columns] = told.grid, patch = Math.floor(y * rows) * columns + Math.floor(x * columns);
  if (erase === null) erase = hidden.has(patch);  // a stroke that begins on a hidden patch shows, another hides
  if (hidden.has(patch) !== erase) return;
  if (erase) hidden.delete(patch); else hidden.add(patch);
  show();
  ask();
}

canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); touch(event); });
canvas.addEventListener("pointermove", (event) => { if (erase !== null) touch(event); });
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { erase = null; });
watch("value", take);
take();

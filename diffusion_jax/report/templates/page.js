"use strict";
for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input");
  const output = slider.querySelector("output");
  const frames = [...slider.querySelectorAll(".frame")];
  if (!input) continue;
  const show = () => {
    frames.forEach((frame, i) => frame.classList.toggle("now", i === Number(input.value)));
    const label = frames[Number(input.value)].dataset.label;
    output.value = label;
    input.setAttribute("aria-valuetext", label);
  };
  input.addEventListener("input", show);
  show();
}

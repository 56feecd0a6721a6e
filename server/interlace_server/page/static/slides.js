// A slider that shows one of several pictures; without this script they stand in a row.
"use strict";

function slide(box) {
  if (box.classList.contains("on")) return;
  const pictures = [...box.querySelectorAll("li")];
  const slider = box.querySelector("input[type=range]");
  const show = () => {
    pictures.forEach((one, at) => one.classList.toggle("shown", at === Number(slider.value)));
    const words = pictures[slider.value].querySelector("figcaption").textContent;
    slider.setAttribute("aria-valuetext", words);
  };
  slider.addEventListener("input", show);
  box.classList.add("on");
  show();
}

function all() { document.querySelectorAll(".slides").forEach(slide); }
document.addEventListener("DOMContentLoaded", all);
document.addEventListener("htmx:afterSettle", all);

"use strict";
(() => {
  // A method's lines are grey until they are lit, so that a few can be told apart among many.
  document.getElementById("legend").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const lit = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", lit);
    for (const line of document.querySelectorAll(`.line[data-m="${button.dataset.m}"]`)) {
      line.classList.toggle("lit", lit);
      if (lit) line.parentNode.append(line); // on top of the others
    }
  });

  // The records that a number links to are closed until then.
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (!target || target.tagName !== "DETAILS") return;
    target.open = true;
    target.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", open);
  open();

  // On paper what is closed is lost: what the methods found is opened, the records stay in the files.
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll(".found details")) one.open = true;
  });
})();

// Outlines every appearance of the patch under the pointer: one photograph may be a neighbor of several queries.
(function () {
  var shown = [];
  document.addEventListener("pointerover", function (event) {
    shown.forEach(function (tile) { tile.classList.remove("same"); });
    var tile = event.target.closest ? event.target.closest("[data-patch]") : null;
    shown = tile ? Array.from(document.querySelectorAll('[data-patch="' + tile.dataset.patch + '"]')) : [];
    if (shown.length < 2) shown = [];
    shown.forEach(function (other) { other.classList.add("same"); });
  });
})();

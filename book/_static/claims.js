// Filters of the page of claims: by verdict and by subject. Without this script the page shows all claims.
document.addEventListener("DOMContentLoaded", () => {
  const claims = [...document.querySelectorAll(".claim")];
  const part = (claim) => claim.closest("section:has(> h2)");
  const subject = (claim) => part(claim).querySelector("h2").firstChild.textContent;
  const asked = new URLSearchParams(location.search);

  const choice = (label, key, of) => {
    const select = document.createElement("select");
    for (const name of ["all", ...new Set(claims.map(of))]) {
      const count = claims.filter((claim) => name === "all" || of(claim) === name).length;
      select.add(new Option(`${name} (${count})`, name));
    }
    if (asked.has(key)) select.value = asked.get(key);
    select.addEventListener("change", filter);
    const field = document.createElement("label");
    field.append(`${label} `, select);
    return { field, fits: (claim) => ["all", of(claim)].includes(select.value) };
  };

  const choices = [
    choice("Verdict", "verdict", (claim) => claim.dataset.verdict),
    choice("Subject", "subject", subject),
  ];
  const shown = document.createElement("output");

  function filter() {
    for (const claim of claims) claim.hidden = !choices.every((one) => one.fits(claim));
    for (const section of document.querySelectorAll("section section:has(.claim)")) {
      section.hidden = !section.querySelector(".claim:not([hidden])");
    }
    shown.textContent = `${claims.filter((claim) => !claim.hidden).length} of ${claims.length} claims`;
  }

  const bar = document.createElement("form");
  bar.className = "claims-filter";
  bar.append(...choices.map((one) => one.field), shown);
  part(claims[0]).before(bar);
  filter();
});

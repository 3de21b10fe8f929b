// Tabs: one panel of each group is shown, and a choice holds for every group that has a tab of this name.
"use strict";

(() => {
  const groups = [...document.querySelectorAll(".tabs")];
  const tabsOf = (group) => [...group.querySelectorAll(":scope > [role=tablist] > [role=tab]")];
  const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));

  function choose(group, chosen) {
    for (const tab of tabsOf(group)) {
      const selected = tab === chosen;
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
      panelOf(tab).hidden = !selected;
    }
    charts.refresh(panelOf(chosen));
  }

  function everywhere(tab) {
    const before = tab.getBoundingClientRect().top;
    for (const group of groups) {
      const same = tabsOf(group).find((one) => one.dataset.name === tab.dataset.name);
      if (same) choose(group, same);
    }
    window.scrollBy(0, tab.getBoundingClientRect().top - before); // panels above may be of another height
  }

  const STEPS = { ArrowLeft: -1, ArrowRight: 1 };
  for (const group of groups) {
    choose(group, tabsOf(group)[0]);
    group.firstElementChild.addEventListener("click", (event) => {
      const tab = event.target.closest("[role=tab]");
      if (tab) everywhere(tab);
    });
    group.firstElementChild.addEventListener("keydown", (event) => {
      const tabs = tabsOf(group);
      const at = tabs.indexOf(event.target);
      const to = { Home: 0, End: tabs.length - 1 }[event.key] ?? (at + (STEPS[event.key] ?? 0) + tabs.length) % tabs.length;
      if (at < 0 || to === at) return;
      event.preventDefault();
      everywhere(tabs[to]);
      tabs[to].focus();
    });
  }
})();

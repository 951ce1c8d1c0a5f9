// What a policy of this server would decide about a picture.

import { ApiError, get, form, post } from "./api.js";
import { command, curl } from "./curl.js";
import { announce, el, number, show } from "./dom.js";

const WORDS = { accept: "Accept", review: "Review", reject: "Reject" };

export class Verdicts {
  constructor() {
    this.policies = null; // null: not known
    this.chosen = 0;
  }

  async load() {
    try {
      this.policies = (await get("v1/policies")).policies;
      this.chosen = Math.max(0, this.policies.findIndex((policy) => policy.is_default));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.policies = null;
    }
  }

  /** A picture's card; asks for the verdict at once. What was answered is kept with the picture. */
  card(picture, asked) {
    const outcome = el("div", { class: "verdict" });
    const card = el("section", { class: "card", "aria-labelledby": "verdict-title", id: "verdict" });
    const head = el("div", { class: "card-head" }, el("h2", { id: "verdict-title" }, "Verdict"));
    card.append(head, outcome);
    if (!this.policies?.length) {
      show(outcome, howToAdd());
      return card;
    }
    head.append(el("label", { class: "inline" }, "by the policy ",
      el("select", { id: "policy", onchange: (event) => { this.chosen = Number(event.target.value); this.ask(picture, asked, outcome); } },
        this.policies.map((policy, at) => el("option", { value: at, ".selected": at === this.chosen }, `${policy.name} ${policy.version}`)))));
    this.ask(picture, asked, outcome);
    return card;
  }

  async ask(picture, asked, outcome) {
    const policy = this.policies[this.chosen];
    const fields = { policy: policy.name, policy_version: policy.version };
    const key = `${policy.name} ${policy.version} ${asked.prompt}`;
    outcome.dataset.key = key;
    picture.verdicts ??= new Map();
    if (!picture.verdicts.has(key)) {
      show(outcome, el("p", { class: "hint" }, "Asking the policy …"));
      const data = form([picture.file], { prompt: asked.prompt });
      for (const [name, value] of Object.entries(fields)) data.append(name, value);
      try {
        picture.verdicts.set(key, (await post("v1/moderate", data)).verdict);
      } catch (error) {
        show(outcome, el("p", { class: "notice bad" }, `No verdict: ${error.message}`));
        return;
      }
      if (outcome.dataset.key === key && outcome.isConnected) announce(`${policy.name} says: ${picture.verdicts.get(key).decision}.`);
    }
    if (outcome.dataset.key !== key) return; // another policy was chosen meanwhile
    show(outcome, inWords(picture.verdicts.get(key), policy),
      command("The same verdict", curl("v1/moderate", [picture.name], { prompt: asked.prompt }, fields)));
  }
}

function inWords(verdict, policy) {
  return [
    el("p", {}, el("span", { class: `decision ${verdict.decision}` }, WORDS[verdict.decision] ?? verdict.decision),
      verdict.reasons.length ? null : " No rule speaks: this is what the policy decides then."),
    verdict.reasons.length > 0 && el("ul", {}, verdict.reasons.map((reason) => el("li", {},
      el("strong", {}, `${WORDS[reason.decision] ?? reason.decision}: ${reason.message}`),
      el("span", { class: "hint" }, ` ${measured(reason)}`)))),
    policy.description && el("p", { class: "hint" }, policy.description),
    el("p", { class: "hint" }, "Quality is not safety: these models cannot tell whether a picture is harmful."),
  ];
}

function measured(reason) {
  const rule = reason.rule && `rule ${reason.rule}`;
  if (reason.value === null) return rule;
  const limit = reason.upper === null ? number(reason.threshold, 4) : `${number(reason.threshold, 4)} and ${number(reason.upper, 4)}`;
  return `${rule}: ${reason.dimension}, ${reason.scale}, ${number(reason.value, 4)} is ${reason.kind} ${limit}`;
}

function howToAdd() {
  const policy = [
    "name: shop", 'version: "1"', "rules:",
    "  - name: too-poor", "    when: {dimension: visual_quality, below: 0.3}", "    decision: reject",
    "    message: The picture looks poor.",
    "  - name: off-topic", "    when: {dimension: alignment, scale: percentile, below: 20}", "    decision: review"];
  const settings = ["moderation:", "  policies: [shop.yaml]"];
  return el("details", {},
    el("summary", {}, "This server has no policy. How to add one"),
    el("p", {}, "A policy is a small file of rules that turn scores into accept, review or reject, for instance ",
      el("code", {}, "shop.yaml"), ":"),
    listing("An example of a policy", policy),
    el("p", {}, "Name it in the server's configuration and start the server again. The verdict then appears here."),
    listing("The settings for it", settings));
}

const listing = (title, lines) => el("pre", { tabindex: "0", "aria-label": title }, el("code", {}, lines.join("\n")));

// Answers one question a line, as the package does: [function, ...arguments] -> {value} or {error}.
"use strict";
const { type } = require("ot-text-unicode");
const lines = require("node:readline").createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const [name, ...args] = JSON.parse(line);
  let answer;
  try {
    answer = { value: type[name](...args) };
  } catch (error) {
    answer = { error: String(error.message) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
});

// What the clients of JavaScript are asked, and how they say what they got.

import { z } from "zod";

export const MODEL = "mmrec";
export const QUESTIONS = ["Hello!", "What does she see?", "Ne görüyor?"];
export const SHORT = 24; // tokens
export const LONG = 250;

export const Report = z.object({ city: z.enum(["Muş", "Van"]), days: z.array(z.boolean()).max(3) });
export const Place = z.object({ city: z.enum(["Muş", "Van"]), day: z.enum(["today", "tomorrow"]) });

export const called = []; // the arguments of the calls so far

/** Tell the weather of a city. */
export function weather(place) {
  called.push(Place.parse(place));
  return "3 °C";
}

/** Write, as JSON, what each case that was asked for gave, or what it raised. */
export async function report(cases) {
  const found = {};
  for (const name of process.argv.slice(2)) {
    called.length = 0;
    try {
      found[name] = { value: structuredClone(await cases[name]()) };
    } catch (error) {
      found[name] = { error: `${error.stack}\n${error.responseBody ?? ""}` };
    }
  }
  process.stdout.write(JSON.stringify(found));
}

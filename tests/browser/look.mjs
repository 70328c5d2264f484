// Opens a page in headless Chromium, light and dark, wide and narrow: node look.mjs PAGE.html FOLDER
// Writes FOLDER/{light,dark}-{wide,narrow}.png and prints what it found as JSON.
import { pathToFileURL } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [file, folder] = process.argv.slice(2);
const args = [...chromium.args, "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await puppeteer.launch({
  executablePath: await chromium.executablePath(),
  args: puppeteer.defaultArgs({ args, headless: "shell" }),
  headless: "shell",
});
const found = { errors: [], requests: [], views: {}, tables: [], themes: [] };
const page = await browser.newPage();
page.on("console", (message) => ["error", "warn"].includes(message.type()) && found.errors.push(message.text()));
page.on("pageerror", (error) => found.errors.push(String(error)));
page.on("request", (request) => found.requests.push(request.url().slice(0, 200)));

const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
for (const scheme of ["light", "dark"])
  for (const [name, width] of Object.entries({ wide: 1280, narrow: 360 })) {
    await page.setViewport({ width, height: 800 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.goto(pathToFileURL(file).href, { waitUntil: "load" });
    await page.screenshot({ path: `${folder}/${scheme}-${name}.png`, fullPage: true });
    found.views[`${scheme}-${name}`] = await page.evaluate(() => ({
      page: document.documentElement.scrollWidth,
      window: document.documentElement.clientWidth,
      ground: getComputedStyle(document.body).backgroundColor,
      ink: getComputedStyle(document.body).color,
      figures: document.querySelectorAll("figure svg").length,
    }));
  }

// The button turns the dark page light, and back.
for (let times = 0; times < 3; times++) {
  found.themes.push(await ground());
  await page.click("#theme");
}

// The first, then the last column of each table, clicked twice.
for (const table of await page.$$("table")) {
  const cells = (at) => table.evaluate((t, n) => [...t.tBodies[0].rows].map((r) => r.cells[n].textContent), at);
  const heads = await table.$$("th button");
  for (const at of new Set([0, heads.length - 1])) {
    const orders = [];
    for (let times = 0; times < 2; times++) {
      await heads[at].evaluate((button) => button.click());
      orders.push(await cells(at));
    }
    found.tables.push({ column: await heads[at].evaluate((button) => button.textContent), up: orders[0], down: orders[1] });
  }
}
await browser.close();
console.log(JSON.stringify(found));

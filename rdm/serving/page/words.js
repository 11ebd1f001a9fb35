// Licenses, numbers and names in words.

const LICENSES = [
  [/creativecommons\.org\/publicdomain\/zero/, "CC0"],
  [/creativecommons\.org\/publicdomain\/mark/, "Public domain"],
  [/creativecommons\.org\/licenses\/([a-z-]+)\/([0-9.]+)/, (kind, version) => `CC ${kind.toUpperCase()} ${version}`],
];

export function licenseName(url) {
  if (!url) return "license not recorded";
  for (const [pattern, name] of LICENSES) {
    const match = url.match(pattern);
    if (match) return typeof name === "string" ? name : name(match[1], match[2]);
  }
  return url.replace(/^https?:\/\//, "");
}

export const authorName = (author) => author || "author not recorded";
export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
export const ordinal = (number) => `${number}${["th", "st", "nd", "rd"][number % 100 > 10 && number % 100 < 14 ? 0 : number % 10] || "th"}`;
export const altOf = (neighbor) => `photograph ${neighbor.image_id}${neighbor.author ? ` by ${neighbor.author}` : ""}, ${licenseName(neighbor.license)}`;

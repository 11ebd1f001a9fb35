// Licenses, numbers and names in words.

export const licenseName = (name) => name || "license not stated";

/** The page of a photograph, else its file; nothing where neither is on the web. */
export const pageOf = (neighbor) => [neighbor.landing_page, neighbor.url].find((url) => /^https?:/.test(url || "")) || "";

export const nameOf = (neighbor) => neighbor.title || neighbor.image_id;
export const authorName = (author) => author || "an author whom the source does not name";
export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
export const ordinal = (number) => `${number}${["th", "st", "nd", "rd"][number % 100 > 10 && number % 100 < 14 ? 0 : number % 10] || "th"}`;
export const altOf = (neighbor) => `photograph ${nameOf(neighbor)}${neighbor.author ? ` by ${neighbor.author}` : ""}, ${licenseName(neighbor.license)}`;

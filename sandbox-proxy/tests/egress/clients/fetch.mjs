// Fetches a URL as Node does by itself, with the proxy of the environment.
try {
  const answer = await fetch(process.argv[2], { method: "POST", body: "payload" });
  console.log(answer.status, await answer.text());
} catch (error) {
  console.log(error.message, error.cause?.message ?? "");
  process.exit(1);
}

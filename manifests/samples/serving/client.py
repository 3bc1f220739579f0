"""Asks a served adapter a question that it has to call a function for; needs nothing but Python.

python client.py [--url http://localhost:8000] [--model function-calling] ["What's the weather in Oslo?"]
"""

import argparse
import json
import sys
import urllib.error
import urllib.request

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get current weather information for a location",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {"type": "string", "description": "The city, e.g. Oslo"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["location"],
            },
        },
    }
]
TIMEOUT_SECONDS = 120


def main() -> int:
    """Print the answer: text, and each call with its arguments. The exit status is 1 where nothing was called."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default="What's the weather like in New York?")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--model", default="function-calling", help="`base` asks the base model")
    options = parser.parse_args()
    try:
        message = ask(options.url, options.model, options.question)
    except urllib.error.HTTPError as error:
        print(f"{options.url} answers {error.code}: {error.read().decode(errors='replace')[:500]}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{options.url} cannot be reached: {error}", file=sys.stderr)
        return 1
    calls = message.get("tool_calls") or []
    if message.get("content"):
        print(message["content"])
    for call in calls:
        print(f"{call['function']['name']}({call['function']['arguments']})")
    return 0 if calls else 1


def ask(url: str, model: str, question: str) -> dict:
    """Return the message of the first choice of a chat completion (https://platform.openai.com/docs/api-reference/chat)."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "tools": TOOLS,
        "tool_choice": "auto",
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        return json.load(response)["choices"][0]["message"]


if __name__ == "__main__":
    sys.exit(main())

"""Load on an OpenAI-compatible server, and what comes of it: questions → exchanges → answers → figures → ratios."""

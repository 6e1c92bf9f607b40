"""The leaderboard: results of many models as a static site, and the same as JSON."""

"""From frozen cell results to what people and machines read: no measuring, no judging."""

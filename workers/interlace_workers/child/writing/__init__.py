"""The ways out of a child: results, and values that leave before the end."""

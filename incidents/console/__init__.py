"""The console's door to incidents: the list, the page of one, and the overview. It holds no rules of its own."""

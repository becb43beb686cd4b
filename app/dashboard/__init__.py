"""The dashboard: screens, and the components that they are made of."""

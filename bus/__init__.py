"""The bus: how organs call each other. It knows no organ by name; the schemas name them."""

"""Turn weights into integers and step sizes."""

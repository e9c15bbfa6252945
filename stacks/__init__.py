"""The AWS side of CloudSync: CDK stacks that a platform team deploys to its own account."""
